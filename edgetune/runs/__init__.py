"""What is done around a training: answers before and after, reports, comparisons of runs."""
