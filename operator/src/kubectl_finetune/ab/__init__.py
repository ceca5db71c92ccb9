"""`ab`: an A/B test's arms compared, on what the routers logged and on outcomes that the user brings."""
