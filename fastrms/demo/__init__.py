"""Studies that show what the library is for; each computes apart from showing."""
