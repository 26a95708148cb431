"""Detection results for other libraries, and results of other libraries for y7edge."""
