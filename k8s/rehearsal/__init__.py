"""The parts of ``k8s/rehearse.py``: what the Dockerfile does, done without Docker."""
