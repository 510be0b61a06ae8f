"""What other libraries use of the service; each part needs the library that it is named after."""
