"""Where agents run, behind one protocol: started apart from the server, ended for certain."""
