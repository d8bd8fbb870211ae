"""The functions behind `jaxgeom COMMAND`: each takes its arguments and returns what runs it, given the command line."""
