"""Read, check and describe option files.

``yaml_file`` finds and reads a file, ``schema`` defines the keys and types of each section, ``train_schema`` those of
``train``, ``rules`` contains the checks beyond single keys, and ``check`` runs all of them before torch or basicsr is
imported. Afterwards, ``signatures`` compares names and arguments with the registered classes. ``json_schema`` writes
the JSON Schema for editors.
"""
