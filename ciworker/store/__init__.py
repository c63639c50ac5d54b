"""What is wanted and what was seen, in SQLite; the only room that imports sqlmodel.

Rows never leave this room: they validate nothing. What goes out are the domain's frozen values.
"""
