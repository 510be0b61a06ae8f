"""Workers as Ray actors, on any number of machines. Needs ``hpsearch[ray]``."""
