"""What jobs train on: named, immutable, checked contents."""
