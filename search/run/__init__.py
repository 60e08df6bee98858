"""When and where: the driver, the machines it uses, and what goes wrong with them."""
