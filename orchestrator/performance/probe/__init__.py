"""What machines and cables can do, measured: the figures that predictions start from."""
