"""What to try next: space, objectives, NSGA-II and its helpers, and which candidates win."""
