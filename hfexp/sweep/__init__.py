"""Many runs: the search space, the study, the scheduler, the parent run and its pages."""
