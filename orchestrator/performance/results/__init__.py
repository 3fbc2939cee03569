"""The documents that measurements leave behind. Read by all that judges them."""
