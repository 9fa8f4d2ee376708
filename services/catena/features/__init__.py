"""Features: what is true of this entity, now or then?"""
