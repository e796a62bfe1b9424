"""What a model's store will take on a machine, before it is made: measured in small, told in large."""
