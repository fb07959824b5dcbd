"""Small hooks into other projects: verl, TRL, ART and Foolbox. Each is a module of its own; see docs/contrib.md."""
