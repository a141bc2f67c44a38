"""The edge of Steelyard: the only place that knows HTTP and Ray."""
