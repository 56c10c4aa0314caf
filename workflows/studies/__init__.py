"""The studies behind the *_study.py scripts."""
