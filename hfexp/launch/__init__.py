"""Starting runs: several processes for one run, several runs on one machine."""
