"""What is written to disk while training, and how a fit goes on from it."""
