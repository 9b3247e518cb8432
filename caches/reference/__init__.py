"""`ReferenceIndex`: the draft index again, brute force in plain Python; the oracle of its tests."""

from paceline.caches.reference.index import ReferenceIndex

__all__ = ["ReferenceIndex"]
