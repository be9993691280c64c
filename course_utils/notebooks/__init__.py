"""The notebook pipeline: source to executed notebook, and the contract that every lesson keeps."""
