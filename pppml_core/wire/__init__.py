"""How parties talk: messages and operations, the codec, the manifest of what may leave a site, and the transcript of what did."""
