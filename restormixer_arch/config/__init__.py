"""Option files: reading, checking and describing them.

``yaml_file`` finds and reads a file, ``schema`` lists the keys and types of each section, ``train_schema`` those of
``train``, ``rules`` holds what no single key shows, and ``check`` runs all of it before torch or basicsr is imported.
Once they are, ``signatures`` compares names and arguments with the registered classes. ``json_schema`` writes the
schema for editors.
"""
