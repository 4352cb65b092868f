"""The report's sections, one file each: a function from the study to a section."""
