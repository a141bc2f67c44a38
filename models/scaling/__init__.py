"""How many replicas a fleet needs: what a replica tells of its work, and the decision; pure, without Ray."""
