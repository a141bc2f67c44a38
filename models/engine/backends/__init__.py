"""One file a runtime, all behind the protocol in ``backend.py``."""
