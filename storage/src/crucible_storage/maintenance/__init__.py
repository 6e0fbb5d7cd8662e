"""What an operator does with the database: migrate, check, back up, restore, and see what it uses."""
