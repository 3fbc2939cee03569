"""Used by every room: errors, paths, processes, downloads, progress. Knows no cluster."""
