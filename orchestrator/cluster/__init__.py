"""All nodes together: bring up, take down, reconcile, status, key rotation."""
