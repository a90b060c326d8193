"""What the book costs: seconds, ratios and kilobytes."""
