"""The name under which Azure's scripts import `EntryScript`."""
