"""One frame in, one result out; live and offline alike."""
