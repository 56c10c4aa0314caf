"""Code that runs inside tasks: the apps train, transfer, aggregate, evaluate, and what they need.

A worker at a site imports this package and ``data``, nothing else of the project.
"""
