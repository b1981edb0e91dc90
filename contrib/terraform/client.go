package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	answerTimeout = 30 * time.Second
	// The server rolls back, or zeroes what it removes, before it responds.
	changeTimeout = 10 * time.Minute
	// For how long a server may be away while a job is awaited, such as during an update.
	patience = 5 * time.Minute
	page     = 1000
)

// apiError is an error response. status is the HTTP status.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

func (e *apiError) temporary() bool {
	return e.status == 429 || e.status == 502 || e.status == 503 || e.status == 504
}

func isStatus(err error, status int) bool {
	var found *apiError
	return errors.As(err, &found) && found.status == status
}

// client is a client of one server.
type client struct {
	url   string
	token string
	http  *http.Client
}

// connection is where the server is, and who the caller is.
type connection struct{ url, token, tokenFile, ca, cert, key string }

func newClient(c connection) (*client, error) {
	base, err := url.Parse(c.url)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" {
		return nil, fmt.Errorf("url %q must look like https://HOST:8080", c.url)
	}
	if c.token != "" && c.tokenFile != "" {
		return nil, errors.New("give token or token_file, not both")
	}
	if c.tokenFile != "" {
		text, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("the token file cannot be read: %w", err)
		}
		c.token = strings.TrimSpace(string(text))
	}
	settings, err := c.tls()
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = settings
	found := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the API has none, and following one would leak the token
	}}
	return &client{url: strings.TrimSuffix(strings.TrimRight(c.url, "/"), "/api/v1"), token: c.token, http: found}, nil
}

func (c connection) tls() (*tls.Config, error) {
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.ca != "" {
		text, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, fmt.Errorf("the CA cannot be read: %w", err)
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("the CA %s is not a certificate in PEM", c.ca)
		}
	}
	if c.cert == "" {
		if c.key != "" {
			return nil, errors.New("key needs cert")
		}
		return settings, nil
	}
	key := c.key
	if key == "" {
		key = c.cert
	}
	pair, err := tls.LoadX509KeyPair(c.cert, key)
	if err != nil {
		return nil, fmt.Errorf("the client certificate cannot be used: %w", err)
	}
	settings.Certificates = []tls.Certificate{pair}
	return settings, nil
}

// call sends a request and decodes the response into out.
func (c *client) call(ctx context.Context, limit time.Duration, method, path string, body, out any, headers ...string) error {
	ctx, done := context.WithTimeout(ctx, limit)
	defer done()
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.url+"/api/v1/"+path, sent)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		request.Header.Set("X-API-Token", c.token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return failure(c.url, response.StatusCode, text)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s does not answer like a libvirt-volume-provisioner: %w", c.url, err)
	}
	return nil
}

func failure(url string, status int, text []byte) error {
	var found struct{ Message string }
	if json.Unmarshal(text, &found) != nil || found.Message == "" {
		found.Message = fmt.Sprintf("%s answered with HTTP status %d", url, status)
	}
	return &apiError{status, found.Message}
}

type volume struct {
	Name      string `json:"name"`
	Target    string `json:"target"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	Digest    string `json:"digest"`
	JobID     string `json:"job_id"`
}

type job struct {
	ID     string `json:"job_id"`
	Status string `json:"status"`
	Error  string `json:"error"`
	Volume volume `json:"volume"`
}

type plan struct {
	Target   string                            `json:"target"`
	Replaces *struct{ Path string }            `json:"replaces"`
	Refusals []struct{ Error, Message string } `json:"refusals"`
}

// find returns a volume, nil if there is none.
func (c *client) find(ctx context.Context, target, name string) (*volume, error) {
	for offset := 0; ; offset += page {
		var found struct {
			Volumes     []volume
			Count       int
			Unavailable map[string]string
		}
		path := fmt.Sprintf("volumes?offset=%d&limit=%d", offset, page)
		if err := c.call(ctx, answerTimeout, http.MethodGet, path, nil, &found); err != nil {
			return nil, err
		}
		if reason, missing := found.Unavailable[target]; missing {
			return nil, fmt.Errorf("the volumes of target %s cannot be listed: %s", target, reason)
		}
		for _, one := range found.Volumes {
			if one.Target == target && one.Name == name {
				return &one, nil
			}
		}
		if offset+page >= found.Count {
			return nil, nil
		}
	}
}

// submit returns the id of a new job. A repeat of the request with the same key makes no second job.
func (c *client) submit(ctx context.Context, body map[string]any) (string, error) {
	key := rand.Text()
	for pause := time.Second; ; pause *= 2 {
		var found struct {
			ID string `json:"job_id"`
		}
		err := c.call(ctx, answerTimeout, http.MethodPost, "jobs", body, &found, "Idempotency-Key", key)
		var refused *apiError
		if err == nil || (errors.As(err, &refused) && !refused.temporary()) || pause > 16*time.Second {
			return found.ID, err
		}
		if !sleep(ctx, pause) {
			return "", ctx.Err()
		}
	}
}

// wait returns a job when it has completed. If ctx ends before, the job is cancelled, so that it leaves no volume behind.
func (c *client) wait(ctx context.Context, id string) (*job, error) {
	seen := time.Now()
	for pause := 200 * time.Millisecond; ; pause = min(pause*13/10, 3*time.Second) {
		var found job
		err := c.call(ctx, answerTimeout, http.MethodGet, "jobs/"+url.PathEscape(id), nil, &found)
		var refused *apiError
		switch {
		case ctx.Err() != nil:
			return nil, c.abandon(id, ctx.Err())
		case err == nil:
			seen = time.Now()
		case (errors.As(err, &refused) && !refused.temporary()) || time.Since(seen) > patience:
			return nil, err
		}
		switch found.Status {
		case "completed":
			return &found, nil
		case "failed":
			return nil, fmt.Errorf("job %s failed: %s", id, found.Error)
		case "cancelled":
			return nil, fmt.Errorf("job %s was cancelled and rolled back", id)
		}
		if !sleep(ctx, pause) {
			return nil, c.abandon(id, ctx.Err())
		}
	}
}

func (c *client) abandon(id string, why error) error {
	var found map[string]any
	err := c.call(context.Background(), changeTimeout, http.MethodPost, "jobs/"+url.PathEscape(id)+"/cancel", nil, &found)
	if err != nil {
		return fmt.Errorf("the wait for job %s ended (%w), and it could not be cancelled: %v", id, why, err)
	}
	return fmt.Errorf("the wait for job %s ended (%w); it was cancelled and rolled back", id, why)
}

// sleep returns whether ctx has not ended meanwhile.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func volumePath(target, name string) string {
	return "volumes/" + url.PathEscape(target) + "/" + url.PathEscape(name)
}
