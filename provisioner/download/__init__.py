"""Downloads: a ranged, resuming, hashing, inspecting stream into a file, and the view of an image still arriving."""
