"""The formats of dictionary files, one a file: each reads what one library writes, and brings its arrays to one form."""
