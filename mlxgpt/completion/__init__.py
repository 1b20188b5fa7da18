"""From a cursor in a file to what should be typed there."""
