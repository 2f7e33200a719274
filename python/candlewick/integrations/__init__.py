"""Candlewick behind other libraries, one module for each; importing this package imports none of them.

``langchain``, ``llama_index``, ``haystack`` and ``chroma`` need the library of that name, which the extra of that name
installs (``pip install 'candlewick[langchain]'``). ``sentence_transformers`` needs nothing but candlewick: it stands in
for that library.
"""
