"""Option files: reading, checking and describing them.

``yaml_file`` reads a file, ``schema`` lists the keys and types of each section, ``rules`` holds what no single key
shows, ``check`` runs all of it before torch or basicsr is imported, ``signatures`` compares names and arguments with
the registered classes once they are, ``pipeline_options`` makes BasicSR's ``opt``, and ``json_schema`` writes the
schema for editors.
"""
