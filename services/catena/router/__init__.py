"""Router: which plan for this request?"""
