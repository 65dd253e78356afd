"""`hfexp plan`: what a command would run, and what that would take, before anything is started."""
