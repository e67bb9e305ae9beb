"""The content-addressed store of artifacts, and what keeps it sound and small."""
