"""Processes: several jobs at once over the slots of a machine, and several processes for one job."""
