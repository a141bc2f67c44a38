"""The checks of this folder, one file each; ``k8s/check.py`` runs them."""
