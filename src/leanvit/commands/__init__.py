"""What each command of the command line does with its words; torch is imported when one runs."""
