"""The stored documents of measurements; prediction, comparison and reports read them."""
