"""The engine and the weights of Steelyard: no Ray, no HTTP, importable and testable alone."""
