"""What runs inside tasks: train, transfer, aggregate, evaluate; artifacts and manifests.

A worker at a site imports this package and ``data``, nothing else of the project.
"""
