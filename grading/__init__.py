"""Release and grade sets of exercises, here or on Gradescope. The judge shares no process with a student's code."""
