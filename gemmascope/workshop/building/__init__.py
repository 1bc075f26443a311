"""How the workshop's notebooks, pictures and guide are made from their sources. Loaded by its script alone, never by the
package.
"""
